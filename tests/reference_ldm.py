"""The networks of CompVis latent-diffusion once more, from their description: what an import is compared with.

How it was obtained: written for these tests after reading the public repository github.com/CompVis/latent-diffusion
(commit a506df5, MIT): its order of layers, parameter names, epsilons and initial shapes are the interface and are kept;
the code is our own and shares none with the package under test or with diffusers. It was run once beside the original
code with the same weights: see docs/import.md for the agreement. Only inference is here.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn


def group_norm(channels, eps=1e-5):
    return nn.GroupNorm(32, channels, eps=eps)


def sinusoids(t, dim):
    """Cosines first; the frequencies fall from 1 by equal factors and never reach 1/10000."""
    angles = t[:, None].float() * torch.exp(-math.log(10000) * torch.arange(dim // 2) / (dim // 2))
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class Resampler(nn.Module):
    """With a convolution (named `op` on the way down, `conv` on the way up), or without any parameter."""

    def __init__(self, channels, up, convolve=True):
        super().__init__()
        self.up, self.convolve = up, convolve
        if convolve and up:
            self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        elif convolve:
            self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x):
        if self.up:
            x = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
            return self.conv(x) if self.convolve else x
        return self.op(x) if self.convolve else F.avg_pool2d(x, 2)


class ResBlock(nn.Module):
    def __init__(self, c_in, c_out, c_emb, scale_shift, resample=None):
        super().__init__()
        self.scale_shift, self.resample = scale_shift, resample
        self.in_layers = nn.Sequential(group_norm(c_in), nn.SiLU(), nn.Conv2d(c_in, c_out, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(c_emb, 2 * c_out if scale_shift else c_out))
        self.out_layers = nn.Sequential(
            group_norm(c_out), nn.SiLU(), nn.Dropout(0), nn.Conv2d(c_out, c_out, 3, padding=1)
        )
        self.skip_connection = nn.Identity() if c_in == c_out else nn.Conv2d(c_in, c_out, 1)

    def forward(self, x, emb, context):
        h = self.in_layers[1](self.in_layers[0](x))
        if self.resample is not None:
            resample = Resampler(None, self.resample == "up", convolve=False)
            x, h = resample(x), resample(h)
        h = self.in_layers[2](h)
        e = self.emb_layers(emb)[:, :, None, None]
        if self.scale_shift:
            scale, shift = e.chunk(2, dim=1)
            h = self.out_layers[0](h) * (1 + scale) + shift
            h = self.out_layers[3](F.silu(h))
        else:
            h = self.out_layers(h + e)
        return self.skip_connection(x) + h


def attend(q, k, v):
    """(..., N, D) by (..., M, D): softmax over M, in float64 to be independent of any kernel."""
    weights = torch.softmax(q.double() @ k.double().mT / math.sqrt(q.shape[-1]), dim=-1)
    return (weights @ v.double()).to(q.dtype)


class AttentionBlock(nn.Module):
    """Queries, keys and values from one layer; its rows are grouped by head first, or by part in the newer order."""

    def __init__(self, channels, heads, new_order):
        super().__init__()
        self.heads, self.new_order = heads, new_order
        self.norm = group_norm(channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv1d(channels, channels, 1)

    def forward(self, x, emb, context):
        rows = self.qkv(self.norm(x).flatten(2))  # (B, 3 C, N)
        if self.new_order:
            q, k, v = (part.unflatten(1, (self.heads, -1)) for part in rows.chunk(3, dim=1))
        else:
            q, k, v = rows.unflatten(1, (self.heads, 3, -1)).unbind(dim=2)  # (B, H, C/H, N) each
        h = attend(q.mT, k.mT, v.mT).mT.flatten(1, 2)
        return x + self.proj_out(h).view_as(x)


class CrossAttention(nn.Module):
    def __init__(self, channels, context, heads):
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_k = nn.Linear(context, channels, bias=False)
        self.to_v = nn.Linear(context, channels, bias=False)
        self.to_out = nn.Sequential(nn.Linear(channels, channels), nn.Dropout(0))

    def forward(self, x, context):
        split = [y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in
                 (self.to_q(x), self.to_k(context), self.to_v(context))]  # fmt: skip
        return self.to_out(attend(*split).transpose(1, 2).flatten(2))


class GatedGelu(nn.Module):
    def __init__(self, channels, hidden):
        super().__init__()
        self.proj = nn.Linear(channels, 2 * hidden)

    def forward(self, x):
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gate)


class FeedForward(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.net = nn.Sequential(GatedGelu(channels, 4 * channels), nn.Dropout(0), nn.Linear(4 * channels, channels))

    def forward(self, x):
        return self.net(x)


class TransformerBlock(nn.Module):
    def __init__(self, channels, context, heads):
        super().__init__()
        self.attn1 = CrossAttention(channels, channels, heads)
        self.ff = FeedForward(channels)
        self.attn2 = CrossAttention(channels, context, heads)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(channels) for _ in range(3))

    def forward(self, x, context):
        normed = self.norm1(x)
        x = x + self.attn1(normed, normed)
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
    def __init__(self, channels, context, heads, depth):
        super().__init__()
        self.norm = group_norm(channels, eps=1e-6)
        self.proj_in = nn.Conv2d(channels, channels, 1)
        self.transformer_blocks = nn.ModuleList(TransformerBlock(channels, context, heads) for _ in range(depth))
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x, emb, context):
        tokens = self.proj_in(self.norm(x)).flatten(2).mT
        for block in self.transformer_blocks:
            tokens = block(tokens, context)
        return x + self.proj_out(tokens.mT.reshape(x.shape))


class UNetModel(nn.Module):
    """`p` holds the YAML's ``unet_config.params``."""

    def __init__(self, p):
        super().__init__()
        self.width, mults, blocks = p["model_channels"], p["channel_mult"], p["num_res_blocks"]
        emb, top = 4 * self.width, len(mults) - 1
        updown, scale_shift = p.get("resblock_updown", False), p.get("use_scale_shift_norm", False)

        def res(c_in, c_out, resample=None):
            return ResBlock(c_in, c_out, emb, scale_shift, resample)

        def attention(c):
            heads = c // p["num_head_channels"] if "num_head_channels" in p else p["num_heads"]
            if p.get("use_spatial_transformer"):
                return SpatialTransformer(c, p["context_dim"], heads, p.get("transformer_depth", 1))
            return AttentionBlock(c, heads, p.get("use_new_attention_order", False))

        def here(level):
            return 2**level in p["attention_resolutions"]

        self.time_embed = nn.Sequential(nn.Linear(self.width, emb), nn.SiLU(), nn.Linear(emb, emb))
        first = nn.Conv2d(p["in_channels"], self.width, 3, padding=1)
        self.input_blocks = nn.ModuleList([nn.ModuleList([first])])
        c, skips = self.width, [self.width]
        for level, mult in enumerate(mults):
            for _ in range(blocks):
                block = nn.ModuleList([res(c, c := mult * self.width)])
                if here(level):
                    block.append(attention(c))
                self.input_blocks.append(block)
                skips.append(c)
            if level < top:
                down = res(c, c, "down") if updown else Resampler(c, up=False)
                self.input_blocks.append(nn.ModuleList([down]))
                skips.append(c)
        self.middle_block = nn.ModuleList([res(c, c), attention(c), res(c, c)])
        self.output_blocks = nn.ModuleList()
        for level in range(top, -1, -1):
            for i in range(blocks + 1):
                block = nn.ModuleList([res(c + skips.pop(), c := mults[level] * self.width)])
                if here(level):
                    block.append(attention(c))
                if level and i == blocks:
                    block.append(res(c, c, "up") if updown else Resampler(c, up=True))
                self.output_blocks.append(block)
        self.out = nn.Sequential(group_norm(c), nn.SiLU(), nn.Conv2d(c, p["out_channels"], 3, padding=1))

    def forward(self, x, t, context=None):
        emb = self.time_embed(sinusoids(t, self.width))

        def run(block, h):
            for layer in block:
                h = layer(h) if isinstance(layer, (nn.Conv2d, Resampler)) else layer(h, emb, context)
            return h

        skips = []
        for block in self.input_blocks:
            skips.append(x := run(block, x))
        x = run(self.middle_block, x)
        for block in self.output_blocks:
            x = run(block, torch.cat([x, skips.pop()], dim=1))
        return self.out(x)


class AutoencoderBlock(nn.Module):
    def __init__(self, c_in, c_out):
        super().__init__()
        self.norm1, self.norm2 = group_norm(c_in, eps=1e-6), group_norm(c_out, eps=1e-6)
        self.conv1, self.conv2 = nn.Conv2d(c_in, c_out, 3, padding=1), nn.Conv2d(c_out, c_out, 3, padding=1)
        if c_in != c_out:
            self.nin_shortcut = nn.Conv2d(c_in, c_out, 1)

    def forward(self, x):
        h = self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))
        return (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x) + h


class AutoencoderAttention(nn.Module):
    """One head over all channels."""

    def __init__(self, c):
        super().__init__()
        self.norm = group_norm(c, eps=1e-6)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(c, c, 1) for _ in range(4))

    def forward(self, x):
        q, k, v = (layer(self.norm(x)).flatten(2).mT for layer in (self.q, self.k, self.v))
        return x + self.proj_out(attend(q, k, v).mT.reshape(x.shape))


def level_of(p, level, c_in, blocks):
    """`block` and `attn` of one level, as submodules of those names."""
    c_out = p["ch"] * p["ch_mult"][level]
    module = nn.Module()
    module.block = nn.ModuleList(AutoencoderBlock(c_in if i == 0 else c_out, c_out) for i in range(blocks))
    attends = p["resolution"] // 2**level in p["attn_resolutions"]
    module.attn = nn.ModuleList(AutoencoderAttention(c_out) for _ in range(blocks if attends else 0))
    return module, c_out


def run_level(module, x):
    for i, block in enumerate(module.block):
        x = block(x)
        if len(module.attn):
            x = module.attn[i](x)
    return x


class Middle(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.block_1, self.attn_1, self.block_2 = (
            AutoencoderBlock(c, c),
            AutoencoderAttention(c),
            AutoencoderBlock(c, c),
        )

    def forward(self, x):
        return self.block_2(self.attn_1(self.block_1(x)))


class StridedDown(nn.Module):
    """Padded at the right and at the bottom only."""

    def __init__(self, c):
        super().__init__()
        self.conv = nn.Conv2d(c, c, 3, stride=2)

    def forward(self, x):
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Encoder(nn.Module):
    def __init__(self, p):
        super().__init__()
        c = p["ch"]
        self.conv_in = nn.Conv2d(p["in_channels"], c, 3, padding=1)
        self.down = nn.ModuleList()
        for level in range(len(p["ch_mult"])):
            module, c = level_of(p, level, c, p["num_res_blocks"])
            if level < len(p["ch_mult"]) - 1:
                module.downsample = StridedDown(c)
            self.down.append(module)
        self.mid = Middle(c)
        self.norm_out = group_norm(c, eps=1e-6)
        self.conv_out = nn.Conv2d(c, (1 + p["double_z"]) * p["z_channels"], 3, padding=1)

    def forward(self, x):
        x = self.conv_in(x)
        for module in self.down:
            x = run_level(module, x)
            if hasattr(module, "downsample"):
                x = module.downsample(x)
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))


class Decoder(nn.Module):
    def __init__(self, p):
        super().__init__()
        levels = len(p["ch_mult"])
        c = p["ch"] * p["ch_mult"][-1]
        self.conv_in = nn.Conv2d(p["z_channels"], c, 3, padding=1)
        self.mid = Middle(c)
        up = []
        for level in range(levels - 1, -1, -1):
            module, c = level_of(p, level, c, p["num_res_blocks"] + 1)
            if level:
                module.upsample = Resampler(c, up=True)
            up.append(module)
        self.up = nn.ModuleList(reversed(up))  # fine levels first, though they run last
        self.norm_out = group_norm(c, eps=1e-6)
        self.conv_out = nn.Conv2d(c, p["out_ch"], 3, padding=1)

    def forward(self, z):
        x = self.mid(self.conv_in(z))
        for module in reversed(self.up):
            x = run_level(module, x)
            if hasattr(module, "upsample"):
                x = module.upsample(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class VectorQuantizer(nn.Module):
    def __init__(self, count, dim):
        super().__init__()
        self.embedding = nn.Embedding(count, dim)

    def forward(self, z):
        distances = (z.movedim(1, -1)[..., None, :] - self.embedding.weight).square().sum(-1)  # (B, H, W, count)
        return self.embedding(distances.argmin(-1)).movedim(-1, 1)


class FirstStage(nn.Module):
    """``VQModelInterface`` if the params have a codebook, else ``AutoencoderKL``; latents are not scaled here."""

    def __init__(self, params):
        super().__init__()
        p, dim = params["ddconfig"], params["embed_dim"]
        self.encoder, self.decoder = Encoder(p), Decoder(p)
        if "n_embed" in params:
            self.quantize = VectorQuantizer(params["n_embed"], dim)
        twice = 1 + p["double_z"]
        self.quant_conv = nn.Conv2d(twice * p["z_channels"], twice * dim, 1)
        self.post_quant_conv = nn.Conv2d(dim, p["z_channels"], 1)

    def encode(self, images):
        """Latents before the codebook, or the moments of the posterior."""
        return self.quant_conv(self.encoder(images))

    def decode(self, z):
        return self.decoder(self.post_quant_conv(self.quantize(z) if hasattr(self, "quantize") else z))


class ClassEmbedder(nn.Module):
    def __init__(self, params):
        super().__init__()
        self.embedding = nn.Embedding(params.get("n_classes", 1000), params["embed_dim"])

    def forward(self, labels):
        return self.embedding(labels[:, None])  # one token


class LatentDiffusion(nn.Module):
    """All of them under the names of a checkpoint; `values` is the YAML."""

    def __init__(self, values):
        super().__init__()
        params = values["model"]["params"]
        self.params = params
        self.model = nn.Module()
        self.model.diffusion_model = UNetModel(params["unet_config"]["params"])
        self.first_stage_model = FirstStage(params["first_stage_config"]["params"])
        if params["cond_stage_config"] != "__is_unconditional__":
            self.cond_stage_model = ClassEmbedder(params["cond_stage_config"]["params"])
        if params.get("scale_by_std"):
            self.register_buffer("scale_factor", torch.tensor(0.9))
        if params.get("use_ema", True):
            self.model_ema = nn.Module()
            self.model_ema.register_buffer("decay", torch.tensor(0.9999))
            self.model_ema.register_buffer("num_updates", torch.tensor(1000, dtype=torch.int))
            for name, weight in self.model.named_parameters():
                self.model_ema.register_buffer(name.replace(".", ""), weight.detach().clone())
        for name, value in schedule(params).items():
            self.register_buffer(name, value)


def schedule(params):
    """The noise schedule's buffers, by their formulas (arXiv 2006.11239)."""
    roots = torch.linspace(
        params["linear_start"] ** 0.5, params["linear_end"] ** 0.5, params["timesteps"], dtype=torch.float64
    )
    betas = roots.square()
    bars = (1 - betas).cumprod(0)
    before = torch.cat([torch.ones(1, dtype=torch.float64), bars[:-1]])
    variance = betas * (1 - before) / (1 - bars)
    values = {
        "betas": betas,
        "alphas_cumprod": bars,
        "alphas_cumprod_prev": before,
        "sqrt_alphas_cumprod": bars.sqrt(),
        "sqrt_one_minus_alphas_cumprod": (1 - bars).sqrt(),
        "log_one_minus_alphas_cumprod": (1 - bars).log(),
        "sqrt_recip_alphas_cumprod": (1 / bars).sqrt(),
        "sqrt_recipm1_alphas_cumprod": (1 / bars - 1).sqrt(),
        "posterior_variance": variance,
        "posterior_log_variance_clipped": variance.clamp(min=1e-20).log(),
        "posterior_mean_coef1": betas * before.sqrt() / (1 - bars),
        "posterior_mean_coef2": (1 - before) * (1 - betas).sqrt() / (1 - bars),
    }
    return {name: value.float() for name, value in values.items()}

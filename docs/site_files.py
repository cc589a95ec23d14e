"""Files beside docs/ that pages link to become files of the site, under the paths that they have in the repository.

So one link, such as ``../benchmarks/results/clothing.json``, works in the repository, in an editor and on the site.
"""

import re
from pathlib import Path

from mkdocs.structure.files import File, InclusionLevel

ROOT = Path(__file__).parent.parent
LINKED = ("CHANGELOG.md", "CONTRIBUTING.md", "benchmarks/**/*.*", "examples/*.py", "recipes/*.yaml")
NOT = {".safetensors", ".pyc"}


def on_files(files, config):
    for pattern in LINKED:
        for path in sorted(ROOT.glob(pattern)):
            name = path.relative_to(ROOT).as_posix()
            if path.is_file() and path.suffix not in NOT:
                file = File.generated(config, f"../{name}", abs_src_path=str(path), inclusion=InclusionLevel.INCLUDED)
                file.dest_uri = str(Path(name).with_suffix(".html")) if file.is_documentation_page() else name
                files.append(file)
    return files


def on_page_markdown(markdown, page, config, files):
    """Pages from beside docs/ find the others at the root of the site."""
    if not page.file.src_uri.startswith("../"):
        return markdown
    return re.sub(r"\[([^\]]*)\]\(docs/([\w-]+)\.md\)", r'<a href="\2.html">\1</a>', markdown)

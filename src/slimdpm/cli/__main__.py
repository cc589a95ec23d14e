from slimdpm.cli.main import main

main()

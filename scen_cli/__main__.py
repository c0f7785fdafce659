from scen_cli.cli import main

main()

from pneumo_dist.cli.app import main

if __name__ == "__main__":
    main()

"""`python -m segattn` is the command line, and so is `accelerate launch -m segattn`."""

from segattn.cli.main import main

if __name__ == "__main__":
    main()

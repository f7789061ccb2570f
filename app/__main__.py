"""`python -m app …` is `trade-stream …`."""

from app.cli import main

if __name__ == "__main__":
    main()

"""`python3 -m virtserial` is the `virtserial` program."""

from virtserial.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())

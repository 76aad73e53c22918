"""Classifying."""


def main(argv: list[str]) -> None:
    pass

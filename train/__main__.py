"""`python -m train --config configs/NAME.py --workdir DIR`."""

if __name__ == '__main__':
    from train.memory import use_large_pages

    use_large_pages()  # before the imports that take seconds, for it starts the program anew

    from train.cli import main
    from train.errors import run_command

    run_command(main)

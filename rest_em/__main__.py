"""`rest_em`, and `python -m rest_em`, which is what `accelerate launch -m rest_em` runs on every rank."""

from rest_em.processes import die_with_launcher


def main() -> None:
    """Tie this process to the launcher before anything that takes time is imported."""
    die_with_launcher()
    from rest_em.cli import main as command_line

    command_line()


if __name__ == "__main__":
    main()

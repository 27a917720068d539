"""`python -m rest_em`, which is what `accelerate launch -m rest_em` runs on every rank."""

from rest_em.cli import main

if __name__ == "__main__":
    main()

"""What a recipe needs before it is launched: memory, time and money of both phases; pure Python, no torch."""

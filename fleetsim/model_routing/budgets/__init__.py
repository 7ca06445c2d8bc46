"""How many answers, rounds and tokens a model's answer may take."""

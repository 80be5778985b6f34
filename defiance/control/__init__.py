"""Network functions: a rule, its learned rival and a bound in one file each."""

"""The gate: a record held against an earlier one, hard on what repeats exactly, soft on time."""

"""What the rule is worth on questions whose answers are known."""

"""What is wrong with a training run: profile, rules, figures."""

"""The diagnosis of a training run: profile, evidence, rules, report."""

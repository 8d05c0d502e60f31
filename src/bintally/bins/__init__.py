"""What a bin is: record, source, demo bins, shards, groups, split. No torch."""

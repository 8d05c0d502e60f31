"""What a bin is: its record, its source, and the shards it is stored in; groups of photographs and their split."""

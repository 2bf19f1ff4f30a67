"""Who runs in the next round: one small file per policy."""

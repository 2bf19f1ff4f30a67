"""One draft round: step the drafters, fuse their proposals by confidence, return one tree per request."""

"""The serving pipeline: admission, rounds of draft and verify, commit, streaming."""

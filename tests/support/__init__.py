"""What the tests share: a fake upstream, a fixed clock, builders, and clients below the level of
the SDKs."""

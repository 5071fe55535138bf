//! One file per kind: facts, defaults, validation, strategy, printer columns.

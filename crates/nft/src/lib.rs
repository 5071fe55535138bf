//! nf_tables over netlink: tables, chains, rules, sets and maps in atomic batches.

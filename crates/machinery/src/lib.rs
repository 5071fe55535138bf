//! IO-free API machinery: errors, selectors, quantities, schemas, patches, tables.

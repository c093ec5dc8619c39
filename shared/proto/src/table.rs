//! Hash tables of the data path, looked up for every packet: keyed by numbers that this machine gives out, and by MAC
//! addresses, whose tables are bounded for each member. The hash is seeded in each process, and takes a few instructions,
//! where that of the standard library takes more than a small frame's encryption.

use std::collections::HashMap;

/// A map with such a hash.
pub type Table<K, V> = HashMap<K, V, foldhash::fast::RandomState>;

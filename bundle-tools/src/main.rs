//! `qbundle`: makes, unpacks and checks OCI bundles by hand.

fn main() {}

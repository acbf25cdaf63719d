//! How `qrun` is linked.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=order.ld");
    // The kernel maps the 64 KiB around each page of the file that is touched. With the program's parts where 64 KiB begin,
    // these are the same in each run, and so is the memory that counts; and with the functions that start a container next to
    // each other, they are few.
    println!("cargo::rustc-link-arg-bin=qrun=-Wl,-z,max-page-size=65536");
    let directory = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
    println!("cargo::rustc-link-arg-bin=qrun=-Wl,-T,{directory}/order.ld");
}

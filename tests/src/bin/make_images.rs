//! Makes the images of the tests, unless they are in the cache, and says where.

#[expect(clippy::print_stdout, reason = "its answer")]
fn main() -> anyhow::Result<()> {
    println!("{}", stack_tests::registry::images()?.display());
    Ok(())
}

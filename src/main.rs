//! The `neap` program.

fn main() -> std::process::ExitCode {
    neap::cli::main()
}

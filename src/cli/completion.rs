//! `neap completion`.

/// Arguments.
#[derive(clap::Args)]
pub struct Args {
    /// The shell
    #[arg(value_enum)]
    shell: clap_complete::Shell,
}

/// Prints the script to standard output.
pub fn print(args: &Args, command: &mut clap::Command) {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, command, "neap", &mut script);
    // A closed pipe is no failure here.
    let _ = std::io::Write::write_all(&mut std::io::stdout(), &script);
}

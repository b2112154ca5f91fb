use std::process::ExitCode;

fn main() -> ExitCode {
    cinelex::cli::main()
}

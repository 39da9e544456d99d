//! The binary: starts the service, and shuts it down at Ctrl-C or SIGTERM.

use std::error::Error;
use std::process::ExitCode;

use tidegate_service::{Service, Settings, SettingsError};
use tokio::signal::unix::{SignalKind, signal};

#[tokio::main]
async fn main() -> ExitCode {
    let settings = match Settings::from_process() {
        Ok(settings) => settings,
        Err(SettingsError::Help) => {
            println!("{}", tidegate_service::HELP);
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::from(2);
        }
    };
    match run(settings).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprint!("{error}");
            let mut cause = error.source();
            while let Some(one) = cause {
                eprint!(": {one}");
                cause = one.source();
            }
            eprintln!();
            ExitCode::FAILURE
        }
    }
}

async fn run(settings: Settings) -> Result<(), Box<dyn Error>> {
    // Registered before the start, so that an early signal is not lost.
    let mut terminate = signal(SignalKind::terminate())?;
    let demo = settings.demo.is_some();
    let service = Service::start(settings).await?;
    let address = service.address();
    let (database, tier) = (service.database(), service.shared_tier());
    eprintln!("http://{address}/users/1   database: {database}   shared tier: {tier}");
    if demo {
        eprintln!("http://{address}/          the live page");
    }
    tokio::select! {
        end = tokio::signal::ctrl_c() => end?,
        _ = terminate.recv() => {}
    }
    eprintln!("ending");
    service.stop().await;
    Ok(())
}

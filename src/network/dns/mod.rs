//! Answers DNS from the catalogue, over datagrams and streams, in Consul's scheme of names; asks others about the rest.

mod answer;
mod recursor;
mod server;
#[cfg(test)]
mod tests;
mod wire;
mod zone;

pub use recursor::Recursor;
pub use server::Server;
pub use wire::Name;
pub use zone::Zone;

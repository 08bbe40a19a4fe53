//! Servers and devices on loopback, as whole programs have them, with the `dummy` method: what is tested is
//! what lies between the machines.

mod attacks;
mod client;
mod crowd;
mod floods;
mod loopback;
mod proxy;
mod stage;

//! Both drivers with the real hosts, around a small federated average.

mod any_scenario;
mod average;
mod local;
mod scale;
mod virtual_time;

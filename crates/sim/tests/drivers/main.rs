//! Both drivers with the real hosts, around a small federated average.

mod average;
mod local;
mod virtual_time;

//! Reserved for the same machines over HTTP and TLS: a driver beside `sim`, with enrolment and a durable
//! store. There is nothing here yet.

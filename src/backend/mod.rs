//! Backends: choosing a server, and the PROXY header it is greeted with.

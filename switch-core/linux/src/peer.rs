//! The other end of a Unix socket.

use std::io;
use std::os::fd::AsFd;

use super::sys;

/// The user id of the process that connected a Unix socket, wherever that process is.
///
/// # Errors
/// It is not a Unix socket.
pub fn peer_user(socket: impl AsFd) -> io::Result<u32> {
    sys::peer::user(socket.as_fd())
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn the_user_of_the_peer_is_known() {
        let (one, _other) = UnixStream::pair().unwrap();
        assert_eq!(peer_user(&one).unwrap(), rustix::process::geteuid().as_raw());
        // The kernel answers for any socket; here the user is nobody.
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        assert_ne!(peer_user(&udp).ok(), Some(0));
    }
}

//! The way between a camera and whoever watches it, over UDP: packets get lost on it, and overtake
//! each other.

use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

/// What becomes of packets.
#[derive(Debug, Clone, Copy, Default)]
pub struct Weather {
    /// The share that is lost.
    pub loss: f64,
    /// The share that three packets overtake. These wait for it, and all four go on at once: however slow the machine is, it
    /// is told from one that is lost.
    pub late: f64,
}

/// What happened on the way, to packets with frames.
#[derive(Debug, Default)]
pub struct Passed {
    pub packets: AtomicU64,
    pub lost: AtomicU64,
    pub late: AtomicU64,
    is_rough: AtomicBool,
    over: AtomicBool,
}

/// A relay in front of an RTSP server. Dropping it ends it, and its connections.
pub struct Relay {
    pub port: u16,
    pub passed: Arc<Passed>,
    threads: Arc<Mutex<Vec<JoinHandle<()>>>>,
}

const TICK: Duration = Duration::from_millis(50);

impl Relay {
    pub fn start(server: u16, weather: Weather) -> Relay {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let passed = Arc::new(Passed::default());
        let threads: Arc<Mutex<Vec<JoinHandle<()>>>> = Arc::default();
        let accepting = {
            let (passed, threads) = (Arc::clone(&passed), Arc::clone(&threads));
            listener.set_nonblocking(true).unwrap();
            move || {
                while !passed.over.load(Ordering::SeqCst) {
                    let Ok((client, _)) = listener.accept() else {
                        std::thread::sleep(TICK);
                        continue;
                    };
                    client.set_nonblocking(false).unwrap();
                    connect(client, server, weather, &passed, &threads);
                }
            }
        };
        threads.lock().unwrap().push(std::thread::spawn(accepting));
        Relay { port, passed, threads }
    }

    pub fn address(&self) -> String {
        format!("rtsp://127.0.0.1:{}/live", self.port)
    }

    /// Whether anything happens to packets from now on. Of one that is lost before the first that comes, who receives them
    /// knows nothing.
    pub fn set_rough(&self, is_rough: bool) {
        self.passed.is_rough.store(is_rough, Ordering::SeqCst);
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.passed.over.store(true, Ordering::SeqCst);
        loop {
            let Some(thread) = self.threads.lock().unwrap().pop() else { return };
            let _ = thread.join();
        }
    }
}

/// Talk goes through as it is, but for the ports that the client names, which become the relay's.
fn connect(
    client: TcpStream,
    server: u16,
    weather: Weather,
    passed: &Arc<Passed>,
    threads: &Arc<Mutex<Vec<JoinHandle<()>>>>,
) {
    let server = TcpStream::connect((Ipv4Addr::LOCALHOST, server)).unwrap();
    for stream in [&client, &server] {
        stream.set_read_timeout(Some(TICK)).unwrap();
    }
    let there = {
        let (passed, threads) = (Arc::clone(passed), Arc::clone(threads));
        let (from, mut to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
        move || {
            let mut from = BufReader::new(from);
            while let Some(line) = read_line(&mut from, &passed) {
                let line = with_ports(&line, weather, &passed, &threads);
                if to.write_all(&line).is_err() {
                    break;
                }
            }
            let _ = to.shutdown(Shutdown::Both);
        }
    };
    let back = {
        let passed = Arc::clone(passed);
        let (from, mut to) = (server, client);
        move || {
            let mut from = BufReader::new(from);
            while let Some(line) = read_line(&mut from, &passed) {
                if to.write_all(&line).is_err() {
                    break;
                }
            }
            let _ = to.shutdown(Shutdown::Both);
        }
    };
    let mut threads = threads.lock().unwrap();
    threads.push(std::thread::spawn(there));
    threads.push(std::thread::spawn(back));
}

fn read_line(from: &mut impl BufRead, passed: &Passed) -> Option<Vec<u8>> {
    let mut line = Vec::new();
    while !passed.over.load(Ordering::SeqCst) {
        match from.read_until(b'\n', &mut line) {
            Ok(0) => return (!line.is_empty()).then_some(line),
            Ok(_) => return Some(line),
            // What has come of the line stays in it.
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(_) => return None,
        }
    }
    None
}

/// A line of the client with other ports, to which a way has been opened.
fn with_ports(
    line: &[u8],
    weather: Weather,
    passed: &Arc<Passed>,
    threads: &Mutex<Vec<JoinHandle<()>>>,
) -> Vec<u8> {
    let Ok(text) = std::str::from_utf8(line) else { return line.to_vec() };
    let Some((head, tail)) = text.split_once("client_port=") else { return line.to_vec() };
    let end = tail.find([';', '\r', '\n']).unwrap_or(tail.len());
    let (ports, rest) = tail.split_at(end);
    let (frames, reports) = ports.split_once('-').unwrap();
    let frames = way(frames.parse().unwrap(), Some(weather), passed, threads);
    let reports = way(reports.parse().unwrap(), None, passed, threads);
    format!("{head}client_port={frames}-{reports}{rest}").into_bytes()
}

/// Opens a port from which packets go on to `to`.
fn way(
    to: u16,
    weather: Option<Weather>,
    passed: &Arc<Passed>,
    threads: &Mutex<Vec<JoinHandle<()>>>,
) -> u16 {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    socket.set_read_timeout(Some(TICK)).unwrap();
    let port = socket.local_addr().unwrap().port();
    let passed = Arc::clone(passed);
    let carry = move || {
        let mut packet = [0; 65_536];
        let mut random = 0x2545_F491_4F6C_DD1D_u64;
        let mut chance = |share: f64| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            (random >> 11) as f64 / ((1u64 << 53) as f64) < share
        };
        let send = |packet: &[u8]| drop(socket.send_to(packet, (Ipv4Addr::LOCALHOST, to)));
        let mut held: Vec<Vec<u8>> = Vec::new();
        while !passed.over.load(Ordering::SeqCst) {
            let Ok(length) = socket.recv(&mut packet) else { continue };
            let packet = &packet[..length];
            let Some(weather) = weather else {
                send(packet);
                continue;
            };
            let is_clear = !passed.is_rough.load(Ordering::SeqCst);
            let weather = if is_clear { Weather::default() } else { weather };
            passed.packets.fetch_add(1, Ordering::SeqCst);
            if chance(weather.loss) {
                passed.lost.fetch_add(1, Ordering::SeqCst);
                continue;
            }
            let is_late = held.is_empty() && chance(weather.late);
            passed.late.fetch_add(is_late.into(), Ordering::SeqCst);
            if is_late || !held.is_empty() {
                held.push(packet.to_vec());
            } else {
                send(packet);
            }
            if held.len() == 4 || is_clear {
                let late = held.len().min(1);
                held.rotate_left(late);
                held.drain(..).for_each(|packet| send(&packet));
            }
        }
    };
    threads.lock().unwrap().push(std::thread::spawn(carry));
    port
}

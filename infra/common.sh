# What the scripts of this folder share; source it. Needs bash.

fail() {  # one line, exit code 2: bad input
  echo "${0##*/}: $*" >&2
  exit 2
}

is_free() {  # PORT of 127.0.0.1
  python3 -c 'import socket, sys; socket.create_server(("127.0.0.1", int(sys.argv[1])))' "$1" 2>/dev/null
}

port_answers() {  # PORT of 127.0.0.1
  python3 -c 'import socket, sys; socket.create_connection(("127.0.0.1", int(sys.argv[1])), 5)' "$1" 2>/dev/null
}

free_ports() {  # COUNT: different free ports of 127.0.0.1 below those that the system assigns, on one line
  python3 -c '
import contextlib, random, socket, sys
sockets = []
for port in random.SystemRandom().sample(range(20000, 32000), 2000):
    if len(sockets) < int(sys.argv[1]):
        with contextlib.suppress(OSError):
            sockets.append(socket.create_server(("127.0.0.1", port)))
print(*(s.getsockname()[1] for s in sockets))' "$1"
}

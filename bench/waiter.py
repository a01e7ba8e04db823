"""Run a command, and write its status, CPU seconds and peak memory in bytes to a file descriptor.

A process's peak begins with that of the one that started it, so a benchmark that is large itself
has this small one in between. Children of the command count, too.
"""

import json
import os
import sys

descriptor, *command = sys.argv[1:]
child = os.posix_spawnp(command[0], command, os.environ)
_, status, usage = os.wait4(child, 0)
found = os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime, 1024 * usage.ru_maxrss
os.write(int(descriptor), json.dumps(found).encode())

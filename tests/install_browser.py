"""Install Debian's Chromium where this machine has no browser for the tests of pages and that is possible.

Ends with 0 either way: without a browser the tests of pages fail and all others run.
"""

import os
import shutil
import subprocess
import sys

from playwright.sync_api import sync_playwright

from browser import MISSING, find_browser


def main() -> None:
    with sync_playwright() as playwright:
        if find_browser(playwright.chromium.executable_path):
            return
    if os.getuid() == 0 and shutil.which("apt-get"):
        print("installing chromium for the tests of pages", flush=True)
        environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        commands = [["apt-get", "update", "-qq"], ["apt-get", "install", "-yqq", "--no-install-recommends", "chromium"]]
        # An update that some source fails may still leave a list with the package in it.
        codes = [subprocess.run(command, env=environment, check=False).returncode for command in commands]
        if codes[-1] == 0:
            return
    print(f"The tests of pages will fail: {MISSING}", file=sys.stderr)


if __name__ == "__main__":
    main()

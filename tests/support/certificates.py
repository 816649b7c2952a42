"""A certificate authority for tests, by openssl(1), in directories as QEMU's tls-creds-x509 has them."""

import shutil
import subprocess


def openssl(*words):
    subprocess.run(["openssl", *words], check=True, capture_output=True)


class Authority:
    def __init__(self, directory, name):
        directory.mkdir(parents=True)
        self._directory = directory
        self._key, self.certificate = str(directory / "ca.key"), str(directory / "ca.pem")
        self._make_key(self._key)
        openssl(
            "req", "-x509", "-new", "-key", self._key, "-out", self.certificate, "-days", "2", "-subj", f"/CN={name}",
            "-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign,cRLSign",
        )  # fmt: skip

    @staticmethod
    def _make_key(path):
        openssl("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", path)

    def issue(self, directory, endpoint, names="DNS:localhost,IP:127.0.0.1"):
        """Make a directory with ca-cert.pem, and ENDPOINT-cert.pem and ENDPOINT-key.pem for these names."""
        directory.mkdir(exist_ok=True)
        shutil.copy(self.certificate, directory / "ca-cert.pem")
        key, request, extensions = (str(directory / f"{endpoint}{end}") for end in ("-key.pem", ".csr", ".ext"))
        self._make_key(key)
        openssl("req", "-new", "-key", key, "-out", request, "-subj", f"/CN={endpoint}")
        with open(extensions, "w") as file:
            file.write(f"subjectAltName={names}\nextendedKeyUsage=serverAuth,clientAuth\n")
        openssl(
            "x509", "-req", "-in", request, "-CA", self.certificate, "-CAkey", self._key, "-CAcreateserial",
            "-days", "2", "-extfile", extensions, "-out", str(directory / f"{endpoint}-cert.pem"),
        )  # fmt: skip
        return str(directory)

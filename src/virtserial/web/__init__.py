"""The web console: consoles and ports of virtual machines in a browser (docs/web.md).  It needs aiohttp.

| file | subject |
|---|---|
| source.py, local_source.py, fleet_source.py | where machines and ports come from: a seam; this machine, or a fleet |
| overview.py | what is known of all ports, asked once a second for everybody |
| hub.py, viewer.py | one connection for each port; each browser's terminal on it, within bounds |
| people.py, access.py, local_peer.py, rates.py | who may do what; who a request is from; how often |
| terminals.py, recordings.py, pages.py, application.py, server.py | requests, and the server |
| static/ | what a browser gets; static/vendor/ is others' work, with its licences |
"""

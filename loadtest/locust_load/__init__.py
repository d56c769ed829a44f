"""What loadtest/locustfile.py is made of; only the files that say so import Locust.

Importing Locust patches the sockets and threads of the whole process (gevent), so nothing else in
the product may import those.
"""

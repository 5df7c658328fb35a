"""The SDK: speaks REST to a running server like anybody else.

Imports httpx2 and its own shapes, nothing of iotjobs, so that it can be used and reasoned about
alone. Start at `http`.
"""

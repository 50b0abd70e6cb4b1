"""What crosses the wire, and the steps that it goes through before it leaves."""

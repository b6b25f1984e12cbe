"""The process that draws, and the hand that the server holds it by."""

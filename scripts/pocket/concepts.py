"""What the pocket model learns: everyday names and the emoji that shows each.

Objects with a clear shape that survive 8-pixel patches; no flags, letters, clocks or skin tones.
"""

from __future__ import annotations


def _parse(table: str) -> dict[str, str]:
    pairs = (entry.split(" ") for line in table.strip().splitlines() for entry in line.split("|"))
    return {name: emoji for name, emoji in pairs}


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


COMMON = """
apple 🍎|banana 🍌|orange 🍊|lemon 🍋|strawberry 🍓|cherry 🍒|watermelon 🍉|pineapple 🍍|pear 🍐
tomato 🍅|carrot 🥕|mushroom 🍄|bread 🍞|pizza 🍕|burger 🍔|egg 🥚|cake 🎂|donut 🍩|cookie 🍪
cup ☕|car 🚗|bus 🚌|train 🚂|truck 🚚|taxi 🚕|bicycle 🚲|airplane ✈|rocket 🚀|boat ⛵|ship 🚢
house 🏠|castle 🏰|church ⛪|tent ⛺|tree 🌳|pine 🌲|palm 🌴|cactus 🌵|flower 🌼|rose 🌹|tulip 🌷
sunflower 🌻|cat 🐈|dog 🐕|horse 🐎|cow 🐄|pig 🐖|sheep 🐑|elephant 🐘|lion 🦁|tiger 🐅|bear 🐻
rabbit 🐇|panda 🐼|monkey 🐒|giraffe 🦒|penguin 🐧|chicken 🐔|duck 🦆|owl 🦉|bird 🐦|fish 🐟
whale 🐋|turtle 🐢|frog 🐸|snake 🐍|butterfly 🦋|bee 🐝|crab 🦀|octopus 🐙|snail 🐌|heart ❤|star ⭐
sun 🌞|moon 🌙|cloud ☁|fire 🔥|rainbow 🌈|umbrella ☂|snowman ⛄|ball ⚽|balloon 🎈|gift 🎁|bell 🔔
crown 👑|hat 🎩|shirt 👕|dress 👗|shoe 👟|book 📕|key 🔑|chair 🪑|clock ⏰|guitar 🎸|drum 🥁
camera 📷|lamp 💡|ghost 👻|robot 🤖|pumpkin 🎃|skull 💀|mountain 🏔|island 🏝
"""

OTHER = """
grape 🍇|melon 🍈|mango 🥭|peach 🍑|kiwi 🥝|coconut 🥥|avocado 🥑|eggplant 🍆|potato 🥔|pepper 🫑
corn 🌽|cucumber 🥒|broccoli 🥦|onion 🧅|peanut 🥜|croissant 🥐|pretzel 🥨|waffle 🧇|pancake 🥞
cheese 🧀|sandwich 🥪|taco 🌮|hotdog 🌭|fries 🍟|popcorn 🍿|sushi 🍣|pie 🥧|cupcake 🧁|candy 🍬
lollipop 🍭|icecream 🍦|chocolate 🍫|honey 🍯|teapot 🫖|bottle 🍾|milk 🥛|beer 🍺|ambulance 🚑
firetruck 🚒|tractor 🚜|scooter 🛵|motorcycle 🏍|tram 🚋|helicopter 🚁|canoe 🛶|anchor ⚓|ufo 🛸
skateboard 🛹|sled 🛷|wheel 🛞|hut 🛖|factory 🏭|hospital 🏥|school 🏫|tower 🗼|fountain ⛲
volcano 🌋|wolf 🐺|fox 🦊|unicorn 🦄|zebra 🦓|deer 🦌|goat 🐐|camel 🐪|llama 🦙|rhino 🦏|hippo 🦛
mouse 🐁|hamster 🐹|hedgehog 🦔|bat 🦇|koala 🐨|kangaroo 🦘|gorilla 🦍|leopard 🐆|raccoon 🦝
squirrel 🐿|otter 🦦|chick 🐤|rooster 🐓|turkey 🦃|eagle 🦅|swan 🦢|flamingo 🦩|parrot 🦜|peacock 🦚
crocodile 🐊|lizard 🦎|dragon 🐉|dinosaur 🦖|dolphin 🐬|shark 🦈|pufferfish 🐡|squid 🦑|shrimp 🦐
lobster 🦞|shell 🐚|jellyfish 🪼|ladybug 🐞|spider 🕷|ant 🐜|caterpillar 🐛|clover 🍀|leaf 🍁
blossom 🌸|hibiscus 🌺|planet 🪐|snowflake ❄|comet ☄|bolt ⚡|raindrop 💧|basketball 🏀
football 🏈|baseball ⚾|volleyball 🏐|racket 🏸|trophy 🏆|medal 🏅|target 🎯|kite 🪁|dice 🎲
teddy 🧸|puzzle 🧩|magnet 🧲|ring 💍|diamond 💎|glasses 👓|scarf 🧣|glove 🧤|coat 🧥|sock 🧦
boot 👢|cap 🧢|handbag 👜|backpack 🎒|lipstick 💄|trumpet 🎺|violin 🎻|piano 🎹|microphone 🎤
radio 📻|phone 📱|telephone ☎|laptop 💻|television 📺|printer 🖨|candle 🕯|lantern 🏮|newspaper 📰
scroll 📜|coin 🪙|envelope ✉|box 📦|pencil ✏|brush 🖌|scissors ✂|lock 🔒|hammer 🔨|axe 🪓|sword 🗡
shield 🛡|bow 🏹|wrench 🔧|gear ⚙|bomb 💣|ladder 🪜|telescope 🔭|microscope 🔬|door 🚪|bed 🛏
couch 🛋|toilet 🚽|bathtub 🛁|bucket 🪣|broom 🧹|basket 🧺|alien 👽|clown 🤡|smiley 🙂
"""

RECOLORED = _words("""
apple pear pepper mushroom cup car train truck boat house tent flower rose tulip cat dog horse
cow pig elephant bear giraffe penguin bird fish whale turtle frog snake butterfly crab octopus
heart star umbrella balloon gift bell hat shirt dress shoe book key chair guitar robot dragon
dinosaur dolphin scooter leaf kite teddy glove coat sock backpack candle
""")
"""Concepts that also appear in other colours than their own."""

PLURALS = {
    "cherry": "cherries", "strawberry": "strawberries", "candy": "candies", "mouse": "mice",
    "butterfly": "butterflies", "teddy": "teddies", "trophy": "trophies", "ladybug": "ladybugs",
    "peach": "peaches", "couch": "couches", "sandwich": "sandwiches", "church": "churches",
    "wrench": "wrenches", "brush": "brushes", "box": "boxes", "fox": "foxes",
    "bus": "buses", "dress": "dresses", "octopus": "octopuses", "cactus": "cacti",
    "leaf": "leaves", "wolf": "wolves", "tomato": "tomatoes", "potato": "potatoes",
    "mango": "mangoes", "volcano": "volcanoes", "factory": "factories",
}  # fmt: skip

COUNTLESS = _words("""
sun moon fire rainbow corn broccoli bread fries popcorn sushi honey milk cheese chocolate
glasses scissors dice sheep fish deer shrimp squid pufferfish jellyfish island mountain
""")
"""Names whose plural is odd, or of which a picture shows only one."""


LEARNT = tuple(_parse(COMMON))
"""Names that the decoder is trained on."""

CONCEPTS: dict[str, str] = _parse(COMMON) | _parse(OTHER)
"""Name -> emoji of everything; the tokenizer learns all of it, so its codes fit other pictures."""


def plural(name: str) -> str:
    return PLURALS.get(name, name + "s")


def article(phrase: str) -> str:
    """`phrase` with "a" or "an" in front."""
    an = phrase[0] in "aeio" or phrase.startswith("umbrella")
    return f"{'an' if an else 'a'} {phrase}"
